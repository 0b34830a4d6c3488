"""Raw values -> vectors, one file a modality."""
