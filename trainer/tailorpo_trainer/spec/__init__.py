"""What a run is: the document as pydantic models, its rules, and its progress. No torch."""
