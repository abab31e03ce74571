"""One file per kind of record: how the report sums it up and draws it. Found by the file name."""
