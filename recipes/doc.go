// Package recipes holds, in a folder for each, alicaptcha in routers and
// frameworks. The code is there to be copied, and README.md explains it; what
// it claims is tested over real servers.
package recipes
