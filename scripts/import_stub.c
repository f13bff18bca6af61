/* Stands in for the TensorRT libraries while the type stubs are made: it satisfies the dynamic linker and does nothing.
   With it the bindings can be imported, not used: every factory returns a null pointer. */
#define FACTORY(name) void *name(void) { return 0; }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)
FACTORY(initLibNvInferPlugins)

int getNvOnnxParserVersion(void) { return 0; }
