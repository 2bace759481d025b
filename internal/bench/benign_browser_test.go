package main

import (
	"bytes"
	"image/png"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMessageIsRead(t *testing.T) {
	m, err := parseMessage([]byte(`{"id":3,"result":{"targetId":"A1"},"sessionId":"S"}` + "\x00"))
	if err != nil || m.ID != 3 || string(m.Result) != `{"targetId":"A1"}` {
		t.Errorf("an answer: %+v, %v", m, err)
	}
	m, err = parseMessage([]byte(`{"method":"Browser.downloadProgress","params":{"guid":"G","receivedBytes":1}}` + "\x00"))
	if err != nil || m.ID != 0 || m.Method != "Browser.downloadProgress" || len(m.Params) == 0 {
		t.Errorf("an event: %+v, %v", m, err)
	}
	m, err = parseMessage([]byte(`{"id":4,"error":{"code":-32601,"message":"'X' wasn't found"}}` + "\x00"))
	if err != nil || m.Error.Message != "'X' wasn't found" {
		t.Errorf("an error: %+v, %v", m, err)
	}
	if _, err := parseMessage([]byte("\x00")); err == nil {
		t.Error("nothing is a message")
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"id":1,"result":{}}` + "\x00"))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = parseMessage(text) })
}

func TestProcessIsRead(t *testing.T) {
	const text = "812 (chromium) S) S 1 800 800 0 -1 4194560 21000 9000 12 0 153 47 20 5 20 0 24 0 91000 34359738368 50000\n"
	group, ran, err := parseStat(text)
	if err != nil || group != 800 || ran != 2250*time.Millisecond {
		t.Errorf("group %d ran %v, %v", group, ran, err)
	}
	for _, text := range []string{"", "1 (a) S 1 2", "1 (a) S 1 x 2 3 4 5 6 7 8 9 10 11 12 13 14", "1 (a) S 1 2 2 3 4 5 6 7 8 9 x 11 12 13 14"} {
		if _, _, err := parseStat(text); err == nil {
			t.Errorf("%q is a process", text)
		}
	}
}

func FuzzProcess(f *testing.F) {
	f.Add("812 (a) S 1 800 800 0 -1 0 0 0 0 0 1 2 3 4 20")
	f.Add(")")
	f.Fuzz(func(_ *testing.T, text string) { _, _, _ = parseStat(text) })
}

// What the web server is to serve is there, and the picture is one that takes a while.
func TestPagesAreWritten(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := writePages(".", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	var names []string
	all, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		names = append(names, f.Name())
	}
	if diff := cmp.Diff([]string{"certificate.pem", "gallery.html", "key.pem", "next.html", "photo.png", "search.html"}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	photo, err := os.ReadFile("photo.png")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := png.Decode(bytes.NewReader(photo)); err != nil || m.Bounds().Dx() != 116 || len(photo) < 40_000 {
		t.Errorf("a picture of %d bytes, %v", len(photo), err)
	}
	page, err := os.ReadFile("gallery.html")
	if err != nil || !strings.Contains(string(page), "http://192.0.2.1:81") || !strings.Contains(string(page), "begun") {
		t.Errorf("%v, a page:\n%s", err, page)
	}
}

// A browser opens a page, is closed, and another one is ended; no connection is made.
func TestBrowser(t *testing.T) {
	if !browserInstalled() {
		t.Skipf("needs %s: apt-get install --no-install-recommends %s", chromium, chromium)
	}
	b := &bench{out: t.Output()}
	defer b.close()
	for _, end := range []func(*browser) error{(*browser).quit, func(w *browser) error { w.crash(); return nil }} {
		w, version, err := b.openBrowser(t.Context(), nil, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(version, "Chrome") {
			t.Errorf("version %q", version)
		}
		tab, err := w.open("data:text/html,", "<script>const begun = new Promise(done => setTimeout(done, 1))</script>")
		if err != nil {
			t.Fatal(err)
		}
		if err := tab.call("Nothing.such", nil, nil); err == nil || !strings.Contains(err.Error(), "Nothing.such") {
			t.Errorf("what the browser cannot do: %v", err)
		}
		if err := tab.close(); err != nil {
			t.Error(err)
		}
		if w.time() == 0 {
			t.Error("it took no time")
		}
		if err := end(w); err != nil {
			t.Error(err)
		}
		if err := w.gone(); err != nil {
			t.Error(err)
		}
	}
}
