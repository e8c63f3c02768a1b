"""VMs are reconciled with their desired state: a pure plan, the loop that applies it, its rows."""
