package alicaptcha_test

import (
	"context"
	"io"
	"log"
	"net/http"

	"github.com/alicaptcha/alicaptcha"
)

// The page with the widget opens the connection that the login needs some seconds later.
func ExampleClient_Warm() {
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Region: alicaptcha.International, AccessKeyID: "your-id", AccessKeySecret: "your-secret",
	})
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		go client.Warm(context.WithoutCancel(r.Context()))
		io.WriteString(w, "the page")
	})
}
