"""What writes generated files: `python -m scripts.<name>`, from the top of the repository."""
