"""The files below ``artifacts/<recipe>/``: names, manifests, reports; one reader and one writer each."""
