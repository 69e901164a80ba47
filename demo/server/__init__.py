"""What stands between the network and the work: limits, messages, uploads, and what programs may call."""
