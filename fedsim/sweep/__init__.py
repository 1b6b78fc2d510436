"""Many experiments from one file: which they are, and how they are run side by side."""
