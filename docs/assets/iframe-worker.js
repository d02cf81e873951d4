/* Browsers start no worker for a page opened from disk. The search then runs in a hidden frame of the same page. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.appendChild(frame)
      const inner = frame.contentWindow
      this.ready = new Promise((resolve) => {
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
        inner.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => load(next)), Promise.resolve())
        const load = (source) =>
          new Promise((done) => {
            const script = frame.contentDocument.createElement("script")
            script.src = source
            script.onload = done
            frame.contentDocument.body.appendChild(script)
          })
        load(String(url)).then(resolve)
      })
      this.inner = inner
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {}
  }
}
