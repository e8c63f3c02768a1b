"""What should be done, as pure functions of what is wanted and what is seen."""
