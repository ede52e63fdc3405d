// Package recipes shows how to use alicaptcha with routers and frameworks, each in a
// folder of its own. The code is meant to be copied. README.md explains it, and
// tests with real servers verify what it says.
package recipes
