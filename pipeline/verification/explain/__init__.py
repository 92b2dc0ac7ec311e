"""Why a comparison failed, computed from evidence."""
