"""What every part uses: configuration, errors, logs, tasks and retry, the machines that the store knows."""
