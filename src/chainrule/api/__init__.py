"""The Python front end: symbolic tensors that record statements (`tensor`), models and steps that run (`model`)."""
