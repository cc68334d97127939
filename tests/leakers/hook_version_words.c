// A library that has its version in exactly one place, or has versions of others.
#ifdef WORD_STRING
const char *foo_get_version_string(void) { return "foo 4.5.6 (release)"; }
const char *foo_bar_version(void) { return "99.0.1"; }  // of bar, not of foo
#endif
#ifdef WORD_STORED
void foo_get_version(unsigned *major, unsigned *minor, unsigned *patch) { *major = 7, *minor = 8, *patch = 9; }
#endif
#ifdef WORD_PARTS
int foo_major_version(void) { return 3; }
int foo_minor_version(void) { return 2; }
int foo_micro_version(void) { return 1; }
#endif
#ifdef WORD_ARRAY
const char foo_version[] = "2.4.16";
#endif
#ifdef WORD_BANNER
const char *foo_about(int n) { return n ? "foo 10.20.30" : "other 1.2.3"; }
#endif
#ifdef WORD_OTHERS
const char *foo_protocol(int n) { return n ? "FOO 3.0" : "TLS 1.2.3"; }
const char *foo_zlib_version(void) { return "1.2.13"; }
int foo_set_version(int version) { return version; }
#endif
int foo_unused;
