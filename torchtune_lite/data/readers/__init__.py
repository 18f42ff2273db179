"""Files of rows, read a part at a time: JSON, CSV, text, Parquet and Arrow, on disk or by a library's name."""
