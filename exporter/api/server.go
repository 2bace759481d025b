package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"tcpcoroner/evidence"
)

// Server serves a Backend on a Unix socket.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen opens the socket with mode 0660. A socket file that nobody answers on
// is a crash's left-over and is replaced; one that answers is another daemon's.
func Listen(path string, b Backend) (*Server, error) {
	if err := clear(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket %s: %w (give --socket a path in a writable directory)", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of control socket: %w", err), l.Close())
	}
	return &Server{listener: l, http: &http.Server{Handler: routes(b), ReadHeaderTimeout: 10 * time.Second}}, nil
}

// clear makes room for the socket at path.
func clear(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.MkdirAll(filepath.Dir(path), 0o750)
	case err != nil:
		return fmt.Errorf("look at control socket: %w", err)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("control socket %s exists and is not a socket: remove it or give --socket another path", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return fmt.Errorf("control socket %s is in use: another tcpcoroner runs there; stop it or give --socket and --data other paths", path)
	}
	return os.Remove(path)
}

// Run serves until ctx ends, then waits up to ten seconds for open answers.
func (s *Server) Run(ctx context.Context) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = s.http.Shutdown(grace)
	})
	err := s.http.Serve(s.listener)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve control socket: %w", err)
	}
	if ctx.Err() != nil {
		<-drained
	}
	return nil
}

// Close stops listening; Run does that by itself when its context ends.
func (s *Server) Close() error { return s.http.Close() }

func routes(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(func(r *http.Request) (any, error) { return b.Status(r.Context()) }))
	mux.HandleFunc("POST /v1/freeze", answer(func(r *http.Request) (any, error) { return freeze(b, r) }))
	webhooks(mux, b)
	mux.HandleFunc("GET /v1/incidents", answer(func(r *http.Request) (any, error) { return incidents(b, r) }))
	mux.HandleFunc("GET /v1/incidents/{ref}", answer(func(r *http.Request) (any, error) {
		return b.Incident(r.Context(), r.PathValue("ref"))
	}))
	mux.HandleFunc("GET /v1/incidents/{ref}/pcapng", func(w http.ResponseWriter, r *http.Request) { capture(b, w, r) })
	return mux
}

func freeze(b Backend, r *http.Request) (any, error) {
	var ask struct {
		Reason string `json:"reason"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10)).Decode(&ask); err != nil {
		return nil, &Error{Code: CodeUsage, Message: fmt.Sprintf("read freeze request: %v", err)}
	}
	return b.Freeze(r.Context(), ask.Reason)
}

func incidents(b Backend, r *http.Request) (any, error) {
	limit := 0
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, &Error{Code: CodeUsage, Message: fmt.Sprintf("limit %q is not a number from 0", text)}
		}
		limit = n
	}
	list, err := b.Incidents(r.Context(), limit)
	if list == nil {
		list = []evidence.Summary{}
	}
	return list, err
}

// answer turns a call into a JSON response.
func answer(call func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := call(r)
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func fail(w http.ResponseWriter, err error) {
	e := asError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus(e.Code))
	_ = json.NewEncoder(w).Encode(e)
}

func httpStatus(c Code) int {
	switch c {
	case CodeNotFound:
		return http.StatusNotFound
	case CodeUsage:
		return http.StatusBadRequest
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeMediaType:
		return http.StatusUnsupportedMediaType
	case CodeDisabled:
		return http.StatusForbidden
	case CodeToken:
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError
}

// capture streams; once bytes have left, an error can only cut the connection,
// which the client sees as an unexpected end.
func capture(b Backend, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-pcapng")
	count := &counting{w: w, deadline: http.NewResponseController(w).SetWriteDeadline}
	err := b.Capture(r.Context(), r.PathValue("ref"), count)
	_ = count.deadline(time.Time{}) // the connection may serve more
	switch {
	case err != nil && count.n == 0:
		fail(w, err)
	case err != nil:
		panic(http.ErrAbortHandler)
	}
}

// stalled is how long a client may take no bytes before it is cut off: it would
// keep others from pulling.
const stalled = 5 * time.Minute

type counting struct {
	w        io.Writer
	deadline func(time.Time) error
	n        int
}

func (c *counting) Write(b []byte) (int, error) {
	if err := c.deadline(time.Now().Add(stalled)); err != nil {
		return 0, err
	}
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}
