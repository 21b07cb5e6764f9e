"""The page, one file per tab; handlers only translate between components and the API."""
