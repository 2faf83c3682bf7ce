"""What is measured, one function each."""
