"""Operations on the device that several rooms share: they know no model, objective or file."""
