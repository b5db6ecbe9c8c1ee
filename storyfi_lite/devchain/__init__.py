"""Simulates a chain in memory for development (`--network dev`), behind bittensor's own `Substrate` protocol.

state       one subnet's state and rules, with the refusals of the real chain
link        how processes on one machine share it: a loopback TCP port
substrate   bittensor's seam, and the development wallets
"""
