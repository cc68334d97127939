/* Nothing, at every event that the tracer listens to. */
int on_event(void *ctx) {
    return 0;
}
