package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// The ports of the pages that the browser visits: HTTP, and HTTP/2 over TLS. Both are
// behind a slow line, so that there is time to leave.
const (
	plainPort  = 8090
	securePort = plainPort + 1
)

// pagesConfig serves them.
const pagesConfig = `
    server {
        listen HOST:8090;
        listen HOST:8091 ssl http2;
        ssl_certificate DIR/certificate.pem;
        ssl_certificate_key DIR/key.pem;
        types { text/html html; image/png png; }
        add_header Cache-Control no-store;
    }
`

// pages are what is served beside siteFiles. Each tells by begun when enough has been
// loaded to leave it. The gallery also asks for a connection that it does not use.
var pages = map[string]string{
	"next.html": `<!doctype html><title>next</title><script>const begun = 0</script>`,
	"gallery.html": `<!doctype html><title>gallery</title><link rel="preconnect" href="http://HOST:81"><body><script>
const begun = new Promise(done => {
	for (let i = 0; i < 40; i++) {
		const photo = new Image()
		if (i == 2) photo.onload = done
		photo.src = 'photo.png?' + i + '-' + Math.random()
		document.body.append(photo)
	}
})
</script>`,
	"search.html": `<!doctype html><title>search</title><script>
const typing = new AbortController()
const begun = fetch('large?' + Math.random(), {signal: typing.signal}).then(answer => answer.body.getReader().read()).then(() => 0)
</script>`,
}

// The line to the pages' ports, for tc(8).
const (
	lineRate   = "8mbit"
	lineBuffer = "128kb"
)

// slowLine has what the web server sends from those ports go slowly; all else is not
// classified, and htb(8) lets it pass as fast as it comes.
func (n *namespace) slowLine() (err error) {
	tc := func(args ...string) {
		err = errors.Join(err, command("tc", append([]string{"-n", n.name}, args...)...))
	}
	tc("qdisc", "add", "dev", device, "root", "handle", "1:", "htb")
	tc("class", "add", "dev", device, "parent", "1:", "classid", "1:1", "htb", "rate", lineRate)
	tc("qdisc", "add", "dev", device, "parent", "1:1", "bfifo", "limit", lineBuffer)
	tc("filter", "add", "dev", device, "parent", "1:", "protocol", "ip", "u32",
		"match", "ip", "sport", fmt.Sprint(plainPort), "0xfffe", "flowid", "1:1")
	return err
}

// writePages writes them, a picture, and what TLS takes.
func writePages(dir, host string) error {
	c, err := selfSigned()
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	photo, err := noise(116)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"photo.png":       photo,
		"certificate.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		"key.pem":         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
	for name, text := range pages {
		files[name] = []byte(placeholders.ReplaceAllString(text, host))
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return fmt.Errorf("write pages: %w", err)
		}
	}
	return nil
}

// noise is a square picture that cannot be compressed: three bytes a pixel.
func noise(side int) ([]byte, error) {
	m := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i := range m.Pix {
		if m.Pix[i] = byte(rand.Uint32()); i%4 == 3 {
			m.Pix[i] = 0xff
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		return nil, fmt.Errorf("make a picture: %w", err)
	}
	return b.Bytes(), nil
}

// surfer is somebody who leaves pages that are being loaded, each time in another way,
// and in the end the browser.
type surfer struct {
	h    *benignHosts
	dir  string
	turn int
	// left counts pages and downloads left in the middle, each of which may be harm.
	left int64
	w    *browser
	// ran is the processor time of browsers that have ended, running of this one, and
	// waited what of the former the kernel counts as that of our children.
	ran, running, waited time.Duration
	version              string
}

// leaving is a way to leave a page.
type leaving struct {
	page  string
	leave func(*tab) error
}

// leaveEvery is how often a page is left: a browser lasts for a minute.
const leaveEvery = 10 * time.Second

// leavings in turn. After each of them the tab is closed.
var leavings = []leaving{
	{"gallery.html", func(t *tab) error { return t.call("Page.navigate", map[string]any{"url": t.site + "next.html"}, nil) }},
	{"gallery.html", func(t *tab) error { return t.call("Page.stopLoading", nil, nil) }},
	{"gallery.html", func(*tab) error { return nil }},
	{"search.html", func(t *tab) error {
		return t.call("Runtime.evaluate", map[string]any{"expression": "typing.abort()"}, nil)
	}},
	{"next.html", (*tab).cancelDownload},
	{"gallery.html", nil}, // with the browser
}

// leave opens a page, waits until some of it is there, and leaves. A browser that fails
// is replaced the next time.
func (s *surfer) leave(ctx context.Context) (err error) {
	round, l := s.turn/len(leavings), leavings[s.turn%len(leavings)]
	s.turn++
	if s.w == nil {
		if s.w, s.version, err = s.h.b.openBrowser(ctx, s.h.client, s.dir); err != nil {
			return err
		}
	}
	s.left++
	t, err := s.w.open(sites[round%len(sites)], l.page)
	if err == nil && l.leave != nil {
		err = errors.Join(l.leave(t), t.close())
	}
	s.running = s.w.time()
	switch {
	case err != nil || l.leave == nil && round/len(sites)%2 == 1:
		s.w.crash()
	case l.leave == nil:
		err = s.w.quit()
	default:
		return nil
	}
	return errors.Join(err, s.settle())
}

// settle waits for the end of a browser that is about to, and counts its time.
func (s *surfer) settle() error {
	if s == nil || s.w == nil {
		return nil
	}
	err := s.w.gone()
	if p := s.w.c.cmd.ProcessState; p != nil {
		s.waited += p.UserTime() + p.SystemTime()
	}
	s.w, s.ran, s.running = nil, s.ran+s.running, 0
	return err
}

// sites are where the pages are.
var sites = []string{
	fmt.Sprintf("http://%s:%d/", serverIP, plainPort),
	fmt.Sprintf("https://%s:%d/", serverIP, securePort),
}

// tab shows a page of a site.
type tab struct {
	w                     *browser
	site, target, session string
}

// open opens a page in a tab of its own, and waits until it has begun.
func (w *browser) open(site, page string) (*tab, error) {
	t := &tab{w: w, site: site}
	var made struct {
		Target string `json:"targetId"`
	}
	if err := w.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &made); err != nil {
		return nil, err
	}
	t.target = made.Target
	var attached struct {
		Session string `json:"sessionId"`
	}
	if err := w.call("", "Target.attachToTarget", map[string]any{"targetId": t.target, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	t.session = attached.Session
	return t, t.visit(page)
}

func (t *tab) call(method string, params, result any) error {
	return t.w.call(t.session, method, params, result)
}

func (t *tab) visit(page string) error {
	var shown struct {
		Error string `json:"errorText"`
	}
	err := t.call("Page.navigate", map[string]any{"url": t.site + page}, &shown)
	if err == nil && shown.Error != "" {
		return fmt.Errorf("browser, %s: %s", t.site+page, shown.Error)
	}
	if err != nil {
		return err
	}
	return t.call("Runtime.evaluate", map[string]any{"expression": "begun", "awaitPromise": true}, nil)
}

func (t *tab) close() error {
	return t.w.call("", "Target.closeTarget", map[string]any{"targetId": t.target}, nil)
}

// cancelDownload begins a download and cancels it when some of it is there.
func (t *tab) cancelDownload() error {
	dir := map[string]any{"behavior": "allow", "downloadPath": t.w.dir, "eventsEnabled": true}
	err := t.w.call("", "Browser.setDownloadBehavior", dir, nil)
	if err == nil { // which ends the visit, says the answer
		err = t.call("Page.navigate", map[string]any{"url": t.site + "large"}, nil)
	}
	var d struct {
		ID       string  `json:"guid"`
		Received float64 `json:"receivedBytes"`
	}
	for err == nil && d.Received == 0 {
		err = t.w.happens("Browser.downloadProgress", &d)
	}
	if err != nil {
		return err
	}
	return t.w.call("", "Browser.cancelDownload", map[string]any{"guid": d.ID}, nil)
}
