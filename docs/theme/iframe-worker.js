/* Search without a server: browsers start no Worker from file://, so its script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.appendChild(frame)
      const inside = frame.contentWindow
      this.waiting = []
      this.inside = null
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(each => load(inside, each)))
      load(inside, new URL(url, location)).then(() => {
        this.inside = inside
        this.waiting.splice(0).forEach(data => this.postMessage(data))
      })
    }
    set onmessage(listener) { this.addEventListener("message", listener) }
    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
    terminate() {}
  }
  const load = (inside, url) => new Promise((done, failed) => {
    const script = inside.document.createElement("script")
    Object.assign(script, { src: url, onload: done, onerror: failed })
    inside.document.documentElement.appendChild(script)
  })
}
