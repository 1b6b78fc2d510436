collect_ignore = ["guided.py"]  # it needs atheris, and changes how everything after it is imported
