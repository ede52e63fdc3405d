package gin_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/gin"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	m.Run()
}

func wrap(h http.HandlerFunc) gin.HandlerFunc { return gin.WrapF(h) }

func TestRouter(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup:   true,
		Recovers: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return recipe.NewRouter(captcha, wrap(home), wrap(login), recipe.Signup(create))
		},
	})
}

func ok(c *gin.Context) { c.String(http.StatusOK, "ok") }

const typeJSON = "application/json"

// A gate on the Engine is also in front of its 404; a gate on a group is not.
func TestUnmatched(t *testing.T) {
	service := gatetest.Start(t)
	captcha := service.Gate(t)
	all := gin.New()
	all.Use(recipe.Gate(captcha.Handler))
	all.POST("/login", ok)
	gatetest.RequireRejected(t, gatetest.Send(t, all, "POST", "/nowhere", "", ""), 400, "captcha_missing")

	r := gin.New()
	group := r.Group("/group")
	group.Use(recipe.Gate(captcha.Handler))
	group.POST("/login", ok)
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, r, "POST", "/group/nowhere", "", "").Status)
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, r, "GET", "/group/login", "", "").Status)
	alicaptchatest.AssertProtected(t, all, "POST /login")
	alicaptchatest.AssertProtected(t, r, "POST /group/login")
}

// ShouldBindBodyWith keeps the body for further bindings, but not for a gate that
// follows.
func TestBinding(t *testing.T) {
	service := gatetest.Start(t)
	captcha := service.Gate(t)
	bind := func(c *gin.Context) {
		var form struct {
			Username string `json:"username" binding:"required"`
		}
		if err := c.ShouldBindBodyWithJSON(&form); err != nil {
			c.AbortWithStatus(http.StatusUnprocessableEntity)
		}
	}
	r := gin.New()
	r.POST("/before", bind, recipe.Gate(captcha.Handler), ok)
	r.POST("/behind", recipe.Gate(captcha.Handler), bind, bind, ok)

	body := gatetest.JSON("alice", service.Param(t))
	gatetest.RequireRejected(t, gatetest.Send(t, r, "POST", "/before", typeJSON, body), 400, "captcha_missing")
	require.Equal(t, http.StatusOK, gatetest.Send(t, r, "POST", "/behind", typeJSON, body).Status)
}

// The gin.Context cannot replace the context of the request, unless the Engine has
// ContextWithFallback.
func TestContext(t *testing.T) {
	service := gatetest.Start(t)
	for _, fallback := range []bool{false, true} {
		r := gin.New()
		r.ContextWithFallback = fallback
		var byGin, byRequest bool
		r.POST("/login", recipe.Gate(service.Gate(t).Handler), func(c *gin.Context) {
			_, byGin = alicaptcha.FromContext(c)
			_, byRequest = alicaptcha.FromContext(c.Request.Context())
		})
		answer := gatetest.Send(t, r, "POST", "/login", typeJSON, gatetest.JSON("alice", service.Param(t)))
		require.Equal(t, http.StatusOK, answer.Status)
		require.True(t, byRequest)
		require.Equal(t, fallback, byGin)
	}
}

// If a middleware recovers without an Abort, gin must not continue behind a gate that
// has panicked.
func TestGatePanics(t *testing.T) {
	service := gatetest.Start(t)
	cfg := service.Config()
	cfg.SceneID = ""
	cfg.SceneIDFunc = func(*http.Request) string { panic("boom") }
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	r := gin.New()
	r.Use(func(c *gin.Context) {
		defer func() {
			if recover() != nil {
				c.Status(http.StatusInternalServerError)
			}
		}()
		c.Next()
	})
	var login gatetest.Login
	r.POST("/login", recipe.Gate(captcha.Handler), gin.WrapH(&login))
	a := gatetest.Send(t, r, "POST", "/login", typeJSON, gatetest.JSON("alice", service.Param(t)))
	require.Equal(t, http.StatusInternalServerError, a.Status)
	require.Zero(t, login.Calls())
}

// A rejection by Require ends the chain, and an outer middleware sees the status of
// each rejection.
func TestChainAndStatus(t *testing.T) {
	service := gatetest.Start(t)
	captcha := service.Gate(t)
	r := gin.New()
	var statuses []int
	r.Use(func(c *gin.Context) {
		c.Next()
		statuses = append(statuses, c.Writer.Status())
	})
	var after int
	count := func(*gin.Context) { after++ }
	r.POST("/login", recipe.Gate(captcha.Handler), count)
	r.POST("/signup", recipe.Gate(captcha.Deferred), recipe.Signup(func(string) {}), count)

	answer := gatetest.Send(t, r, "POST", "/login", typeJSON, gatetest.JSON("bob", ""))
	gatetest.RequireRejected(t, answer, 400, "captcha_missing")
	answer = gatetest.Send(t, r, "POST", "/signup", typeJSON, gatetest.JSON("bob", ""))
	gatetest.RequireRejected(t, answer, 400, "captcha_missing")
	require.Zero(t, after)
	answer = gatetest.Send(t, r, "POST", "/signup", typeJSON, gatetest.JSON("bob", service.Param(t)))
	require.Equal(t, http.StatusCreated, answer.Status)
	require.Equal(t, 1, after)
	require.Equal(t, []int{400, 400, 201}, statuses)
}

// When a connection breaks, gin.Recovery logs all headers except Authorization. It
// does not log a param in the body.
func TestRecoveryLogsHeaders(t *testing.T) {
	service := gatetest.Start(t)
	var logged bytes.Buffer
	r := gin.New()
	r.Use(gin.RecoveryWithWriter(&logged))
	r.POST("/login", recipe.Gate(service.Gate(t).Handler), func(*gin.Context) { panic(http.ErrAbortHandler) })

	param := service.Param(t)
	gatetest.Send(t, r, "POST", "/login", typeJSON, gatetest.JSON("alice", param))
	require.Contains(t, logged.String(), "POST /login")
	require.NotContains(t, logged.String(), param)

	server := httptest.NewServer(r)
	defer server.Close()
	param = service.Param(t)
	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", nil)
	require.NoError(t, err)
	req.Header.Set("Captcha-Verify-Param", param)
	gatetest.Do(t, req)
	require.Contains(t, logged.String(), param)
}

// A gate after the handler protects nothing, and AssertProtected reports that.
func TestGateAfterTheHandler(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	r := gin.New()
	r.POST("/login", ok, recipe.Gate(captcha.Handler))
	var found report
	require.False(t, alicaptchatest.AssertProtected(&found, r, "POST /login"))
	require.Contains(t, found.text, "the handler runs before the gate")
}

// A report is an alicaptchatest.TestingT that records failures.
type report struct{ text string }

func (*report) Helper()                             {}
func (r *report) Errorf(format string, args ...any) { r.text += fmt.Sprintf(format, args...) }
