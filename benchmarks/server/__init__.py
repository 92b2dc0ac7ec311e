"""The server under load: wrong and lost answers, latency, throughput, memory."""
