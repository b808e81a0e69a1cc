package api

// BuildVersion is the version of this build, set by the linker. It is "dev"
// in a build made without the Makefile.
var BuildVersion = "dev"
