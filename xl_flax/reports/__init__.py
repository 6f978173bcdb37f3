"""Tables, figures and pages made of results: the room of the command `xl_flax.report`."""
