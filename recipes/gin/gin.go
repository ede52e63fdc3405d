// Package gin puts alicaptcha in front of routes of gin.
package gin

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/alicaptcha/alicaptcha"
)

// NewRouter returns an Engine in which POST /login is behind the gate. The handler
// of POST /signup asks for the verdict itself. Handlers find the Outcome in
// c.Request.Context().
func NewRouter(captcha *alicaptcha.Middleware, home, login, signup gin.HandlerFunc) *gin.Engine {
	r := gin.New()
	r.Use(gin.Recovery())
	r.GET("/", home)
	r.POST("/login", Gate(captcha.Handler), login)
	r.POST("/signup", Gate(captcha.Deferred), signup)
	return r
}

// Gate adapts wrap, which is the method Handler or Deferred of a Middleware, to gin.
// It wraps the handlers that follow.
func Gate(wrap func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		passed := false
		// The Abort is deferred because of panics: if another handler recovers
		// without an Abort, gin continues with the handler behind the gate.
		defer func() {
			if !passed {
				c.Abort()
			}
		}()
		wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.Request = r
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
	}
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) gin.HandlerFunc {
	return func(c *gin.Context) {
		var form struct {
			Username string `json:"username" binding:"required"`
		}
		c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, 64<<10)
		if err := c.ShouldBindJSON(&form); err != nil {
			c.AbortWithStatusJSON(http.StatusUnprocessableEntity, gin.H{"error": "a username is required"})
			return
		}
		if !alicaptcha.Require(c.Writer, c.Request) {
			c.Abort() // the rejection is written
			return
		}
		create(form.Username)
		c.Status(http.StatusCreated)
	}
}
