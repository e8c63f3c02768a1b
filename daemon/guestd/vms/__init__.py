"""Reconciles VMs with their desired state: a pure plan, the loop that applies it, and its rows in the store."""
