// Search on pages that are opened as files: a browser starts no Worker from file://, so its script runs in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      addEventListener("message", event => {
        if (event.source === inside) this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      inside.document.open()
      inside.document.write("<script>postMessage = data => window.parent.dispatchEvent(" +
        "new window.parent.MessageEvent('message', { data, source: window }))</" + "script>" +
        "<script src='" + url + "'></" + "script>")
      inside.document.close()
      this.ready = new Promise(done => inside.addEventListener("load", done, { once: true }))
    }
    postMessage(data) {
      const inside = this.frame.contentWindow
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
