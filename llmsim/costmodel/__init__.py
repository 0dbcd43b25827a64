"""What a step costs: operator list, roofline, memory.

Start with `contract` (what the engine asks), then `roofline` (how the default answers).
"""
