"""What `import preftune` offers next to `preftune.train`: the commands as functions of Python objects."""
