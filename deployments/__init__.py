"""What a Prefect server is given to run the flows: pools, deployments, schedules, automations."""
