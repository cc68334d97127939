"""What a command does. Only here is a Case assembled from evidence, stored, and handed to analysis."""
