// Command caddy is Caddy with its standard modules and the module alicaptcha, for those
// who do not build their own with xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/alicaptcha/alicaptcha/caddyalicaptcha"
)

func main() { caddycmd.Main() }
