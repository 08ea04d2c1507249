"""An artifact behind an Open Inference Protocol server: REST and gRPC on MLServer. Needs the extra `serve`."""
