"""Operations: durable records of what users asked for, run by sagas, followed by events."""
