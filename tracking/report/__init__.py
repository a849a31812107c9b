"""A comparison as it is shown: the table in each format, and the report as one HTML file."""
