"""The networks of the notebooks; each `build` takes the Keras module to build with."""
