// What is being generated in a view, so that all of it can be stopped at once.

/** Tracks runs; `onChange` is told whether any is under way. */
export function createRuns(onChange) {
  const running = new Set();
  return {
    busy: () => running.size > 0,
    stop: () => running.forEach((controller) => controller.abort()),
    /** Runs `work(signal)` as one of the runs. */
    async track(work) {
      const controller = new AbortController();
      running.add(controller);
      onChange();
      try {
        return await work(controller.signal);
      } finally {
        running.delete(controller);
        onChange();
      }
    },
  };
}
