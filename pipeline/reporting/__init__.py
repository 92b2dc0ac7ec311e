"""The report: one HTML page of what the stages wrote."""
