"""Memory-leak forensics on live inference processes.

observe -> attribute -> explain -> remedy -> prove. docs/architecture.md is the plan of the house.
"""

__version__ = "0.1.0"
