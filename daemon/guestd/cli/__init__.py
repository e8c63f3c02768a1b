"""The command line: `main` assembles the verbs, and each verb is a module."""
