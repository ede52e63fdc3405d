// Command compose is an app whose login is behind a captcha. compose.yaml runs it
// next to the simulator of the service.
package main

import (
	"cmp"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

func main() {
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Region:   alicaptcha.International,
		Endpoint: os.Getenv("CAPTCHA_ENDPOINT"), // not set in production: then Region decides
	})
	if err != nil {
		log.Fatal(err)
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: client, SceneID: os.Getenv("CAPTCHA_SCENE")})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /login", captcha.Handler(http.HandlerFunc(login)))

	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), ":8080"))
	if err != nil {
		log.Fatal(err)
	}
	log.Println("listening on", listener.Addr())
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      30 * time.Second, // longer than ReadTimeout and Config.Timeout together
	}
	log.Fatal(server.Serve(listener))
}

func login(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "The captcha was passed.\n")
}
