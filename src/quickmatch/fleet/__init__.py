"""Deployments and the backends behind them: embedded engine processes, remote providers."""
