"""The gateway: gRPC in front of the store. It enqueues and reads; it never works on a model."""
