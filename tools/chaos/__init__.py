"""`make chaos`: the promises of a service that stays up, each broken at on purpose; see __main__."""
