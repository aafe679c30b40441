"""Reports on finished evaluations: tables, comparisons and HTML pages."""
